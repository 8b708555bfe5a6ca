"""The S3 server that benchmarks run against: `python benchmarks/s3_stub.py --latency 0.01`. See `perdure.testing.s3_stub`."""

from perdure.testing.s3_stub import main

if __name__ == "__main__":
    main()
