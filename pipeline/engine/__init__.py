"""The DAG and what runs it: plan, materialize, identity. None of it affects a result."""
