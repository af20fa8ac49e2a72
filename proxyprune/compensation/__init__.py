"""Closed-form repair of a pruned network: refit the layers that read what was cut, without training."""
