"""The Open Inference Protocol (KServe v2) over the same services: tensors in, quantd.v1 messages, tensors out."""
