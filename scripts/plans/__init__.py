"""What `scripts/bench_plans.py` consists of."""
