"""Every byte from a session is hostile: what takes it in never raises what nobody catches, and never stalls.

Each module fuzzes one place and has a control: the same input through a naive reader, which shows that the check can fail.
CI runs few examples, the same ones each time; `FUZZ_TIMES=20 pytest tests/fuzz` runs twenty times as many, and other ones;
`make fuzz` runs the same properties for a time, guided by coverage.
"""
