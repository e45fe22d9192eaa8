"""`lantern export`: a student as a folder that others load: transformers, vLLM, sentence-transformers, ONNX Runtime."""
