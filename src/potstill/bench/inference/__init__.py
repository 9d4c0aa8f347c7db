"""How small and how fast models are where they run: sizes, memory, FLOPs, latency, throughput, and the limit."""
