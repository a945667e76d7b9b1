"""What training costs: `python -m benchmarks` measures this project, its alternatives and the machine in one run."""
