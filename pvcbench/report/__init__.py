"""The report: all results of a folder as one HTML page that needs no network and no server.

pvcbench report results/ --out report/    # writes report/index.html

Its first screen says which methods keep most at 10, 25 and 40% of the cache (`answer`), then come the leaderboard,
curves, samples, analyses and where every number comes from (`html_page`). Texts that a model wrote are data: they reach
the page in packed blocks and as text nodes, and its policy lets no script run but ours.

Beside the page: what `pvcbench figures` draws over runs (`draw_or_check`, `figures_over_runs`, `markdown_latex`) and
what `pvcbench compare` tests (`compare_methods`).
"""
