"""Decoders of other papers between the same encoders, to compare with: one overlay each in `configs/baseline/`."""
