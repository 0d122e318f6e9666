"""Open Inference Protocol v2: `inference.GRPCInferenceService`, as Triton's and KServe's clients speak it."""
