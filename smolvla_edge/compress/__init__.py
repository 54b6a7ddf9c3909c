"""Making a policy smaller: code formats, solvers, calibration, and what each costs in actions."""
