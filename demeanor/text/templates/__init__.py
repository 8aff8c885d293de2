"""The built-in chat templates, one per file: `template(tokenizer)`, and the same as jinja for
transformers."""
