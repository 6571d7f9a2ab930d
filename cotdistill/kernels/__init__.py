"""How the work is fast; nothing here changes a result, and nothing of the study is imported."""
