"""Makes the embedded suite: small data in the formats of the real benchmarks, and a small pre-trained model."""
