"""Every performance figure of the documentation: ``python -m benchmarks NAME [--json]``."""
