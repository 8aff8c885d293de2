"""Tools by name: each file of this folder has a SPEC (what the model sees) and `run(arguments)`, async or not,
which returns text or any other value. `layers/tools/` loads and runs them."""
