"""The places perdure can keep bytes in, one module each. Opened by URL through `perdure.registry`; see README.md here."""
