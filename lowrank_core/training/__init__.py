"""Fine-tuning: factors trained at their ranks."""
