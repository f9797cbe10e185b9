"""Reports: text, HTML, Markdown and Perfetto traces made from results; nothing is computed here."""
