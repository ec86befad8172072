"""Write the table of every suite under benchmarks/results anew from its rows; nothing is run.

python benchmarks/read.py
"""

from pathlib import Path

from celltransfer.experiments import suites

for rows in sorted(Path(__file__).parent.glob("results/*/rows.csv")):
    outcome = suites.read(rows.parent)
    outcome.save(rows.parent)
    told = [claim.holds for claim in outcome.claims]
    print(f"{outcome.name}: {told.count(True)} hold, {told.count(False)} do not, {told.count(None)} cannot be told")
