"""Our own chat templates, one per file: `template(tokenizer)` and, beside it, the same as jinja for transformers."""
