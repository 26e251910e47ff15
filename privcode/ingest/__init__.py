"""Ingestion: an uploaded JSONL file or source archive becomes a canonical dataset, or is refused.

Reading and judging the upload happens in a child process (:func:`ingest_in_child`). Light imports only.
"""

from privcode.ingest.child import ingest_in_child
from privcode.ingest.contract import IngestLimits, IngestRequest, IngestSummary
from privcode.ingest.pipeline import ingest

__all__ = ["IngestLimits", "IngestRequest", "IngestSummary", "ingest", "ingest_in_child"]
