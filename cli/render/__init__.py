"""How results look: values of one kind (reports, models, ...) in one of the formats text, json, jsonl, csv."""
