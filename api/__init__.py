"""The HTTP layer: routes, schemas, authentication, and what each error means over HTTP. No business rules, no torch."""
