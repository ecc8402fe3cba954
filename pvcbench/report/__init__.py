"""The report: all results of a folder as one HTML page that needs no network and no server.

pvcbench report results/ --out report/    # writes report/index.html

Every number on it is `stats`', `likelihood`'s or an analysis's own; nothing is computed again here. Texts that a model
wrote are data: they reach the page as escaped JSON and as text nodes, and its policy lets no script run but ours.
"""
