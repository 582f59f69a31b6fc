"""Chooses the precision to publish: fp32, fp16 or int8, by accuracy and measured speed."""
