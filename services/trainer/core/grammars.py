"""Headers by tree-sitter: which nodes of nine languages are what ``for``, ``while``, ``if``, functions and classes are
to Python (arXiv 2512.05459, section 4.2).

The same rules for every language:

- Loops: every loop statement (``do``, ``repeat``, ``loop``, ``until``, ``foreach``). ``if``: also ``else if``, from its
  own ``if``, and Swift's ``guard``. Not ``switch``, ``match``, ``try``, conditional expressions or directives.
- Functions: methods, constructors, destructors and operators are functions. A function without a body (prototype,
  interface or abstract method) defines nothing and does not count, nor does a lambda, as in Python, unless a
  declaration of JavaScript or TypeScript gives it a name: ``const f = () => {``.
- Classes: struct, enum, union, record, interface, trait, protocol, extension, ``impl``.
- Decorators, attributes, annotations and comments before a definition are not part of its header.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pkgutil import resolve_name
from types import MappingProxyType
from typing import Final

from tree_sitter import Language, Node, Parser, Point, Query, QueryCursor, Tree


@dataclass(frozen=True, kw_only=True)
class Syntax:
    """``grammars``: ``module:function``; the first that parses the code without an error counts.

    ``headers``: node kinds, where need be with what they must contain, as in tree-sitter's queries.
    """

    grammars: tuple[str, ...]
    headers: tuple[str, ...]


_JAVASCRIPT: Final = (
    "for_statement", "for_in_statement", "while_statement", "do_statement", "if_statement",
    "function_declaration", "generator_function_declaration", "method_definition", "class_declaration",
    "lexical_declaration (variable_declarator value: [(arrow_function) (function_expression) (generator_function)])",
    "variable_declaration (variable_declarator value: [(arrow_function) (function_expression) (generator_function)])",
)  # fmt: skip

SYNTAX: Final[Mapping[str, Syntax]] = MappingProxyType(
    {
        "javascript": Syntax(grammars=("tree_sitter_javascript:language",), headers=_JAVASCRIPT),
        "typescript": Syntax(
            grammars=("tree_sitter_typescript:language_typescript", "tree_sitter_typescript:language_tsx"),
            headers=(
                *_JAVASCRIPT, "abstract_class_declaration", "interface_declaration", "enum_declaration",
            ),
        ),
        "java": Syntax(
            grammars=("tree_sitter_java:language",),
            headers=(
                "for_statement", "enhanced_for_statement", "while_statement", "do_statement", "if_statement",
                "method_declaration body: (_)", "constructor_declaration", "compact_constructor_declaration",
                "class_declaration", "interface_declaration", "enum_declaration", "record_declaration",
                "annotation_type_declaration",
            ),
        ),
        "cpp": Syntax(
            grammars=("tree_sitter_cpp:language",),
            headers=(
                "for_statement", "for_range_loop", "while_statement", "do_statement", "if_statement",
                "function_definition",
                # Without a body they are uses of a type: `struct node *next;`.
                "class_specifier body: (_)", "struct_specifier body: (_)", "union_specifier body: (_)",
                "enum_specifier body: (_)",
            ),
        ),
        "rust": Syntax(
            grammars=("tree_sitter_rust:language",),
            headers=(
                "for_expression", "while_expression", "loop_expression", "if_expression", "function_item",
                "struct_item", "enum_item", "union_item", "trait_item", "impl_item",
            ),
        ),
        "php": Syntax(
            # To the second grammar, code without an opening tag is all text.
            grammars=("tree_sitter_php:language_php_only", "tree_sitter_php:language_php"),
            headers=(
                "for_statement", "foreach_statement", "while_statement", "do_statement", "if_statement",
                "else_if_clause", "function_definition", "method_declaration body: (_)",
                "class_declaration", "interface_declaration", "trait_declaration", "enum_declaration",
            ),
        ),
        "shell": Syntax(
            grammars=("tree_sitter_bash:language",),
            headers=(
                "for_statement", "c_style_for_statement", "while_statement", "if_statement", "elif_clause",
                "function_definition",
            ),
        ),
        "csharp": Syntax(
            grammars=("tree_sitter_c_sharp:language",),
            headers=(
                "for_statement", "foreach_statement", "while_statement", "do_statement", "if_statement",
                "method_declaration body: (_)", "local_function_statement body: (_)",
                "constructor_declaration body: (_)", "destructor_declaration body: (_)",
                "operator_declaration body: (_)", "conversion_operator_declaration body: (_)",
                "class_declaration", "struct_declaration", "interface_declaration", "enum_declaration",
                "record_declaration",
            ),
        ),
        "swift": Syntax(
            grammars=("tree_sitter_swift:language",),
            headers=(
                "for_statement", "while_statement", "repeat_while_statement", "if_statement", "guard_statement",
                "function_declaration body: (_)", "init_declaration body: (_)", "deinit_declaration body: (_)",
                # The first is also what struct, enum, actor and extension are to this grammar.
                "class_declaration", "protocol_declaration",
            ),
        ),
    }
)  # fmt: skip

_BEFORE_A_HEADER: Final = frozenset(
    {
        "decorator", "annotation", "marker_annotation", "attribute", "attribute_list", "attribute_declaration",
        "attribute_specifier", "comment", "line_comment", "block_comment", "multiline_comment",
    }
)  # fmt: skip

# Hostile code must not hold a training run up. Counts, not seconds: which tokens are structure must not depend on how
# busy the machine is. Ordinary code of 50 kB needs 600 to 1,500 of the parser's progress reports and a dozen reads;
# a parser that runs to the end and back at every token (comments that never close) needs thousands of reads.
_MAX_BYTES: Final = 50_000
_MAX_PROGRESS: Final = 3_000
_MAX_READS: Final = 500


def header_points(code: str, *, lang: str) -> list[Point]:
    """Where headers begin in ``code``, whose lines end in ``\\n``: rows from 0, columns in bytes of UTF-8.

    ``lang`` is a key of ``SYNTAX``. Empty for code with a syntax error and for code above the limits on size and work.
    """
    source = code.encode("utf-8", "replace")  # a lone surrogate becomes one byte
    if len(source) > _MAX_BYTES:
        return []
    for grammar in SYNTAX[lang].grammars:
        parser, query = _load(grammar, SYNTAX[lang].headers)
        tree = _parse(parser, source)
        if tree is not None and not tree.root_node.has_error:
            # Not captures(): it also gives nodes whose match fails later, at what they must contain.
            matches = QueryCursor(query).matches(tree.root_node)
            return sorted({_header_start(node) for _, captures in matches for node in captures["header"]})
    return []


@lru_cache
def _load(grammar: str, headers: tuple[str, ...]) -> tuple[Parser, Query]:
    language = Language(resolve_name(grammar)())
    return Parser(language), Query(language, " ".join(f"({header}) @header" for header in headers))


def _parse(parser: Parser, source: bytes) -> Tree | None:
    """None where the parser makes no end within the limits."""
    view = memoryview(source)
    reads = progress = 0

    def read(offset: int, _: Point) -> memoryview:
        nonlocal reads
        reads += 1
        return view[offset:] if reads <= _MAX_READS else view[:0]

    def stop(_offset: int, _has_error: bool) -> bool:
        nonlocal progress
        progress += 1
        return reads > _MAX_READS or progress > _MAX_PROGRESS

    try:
        tree = parser.parse(read, progress_callback=stop)
    except ValueError:
        parser.reset()  # or the next parse would go on with this one
        return None
    return tree if reads <= _MAX_READS else None


def _header_start(node: Node) -> Point:
    return next((child.start_point for child in _parts(node) if child.type not in _BEFORE_A_HEADER), node.start_point)


def _parts(node: Node) -> Iterator[Node]:
    """Children, with those of a list of modifiers in its place: Java and Swift keep annotations there."""
    for child in node.children:
        if child.type == "modifiers":
            yield from child.children
        else:
            yield child
