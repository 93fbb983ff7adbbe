"""The lab: a controlled comparison of ways to join sound and a language model, from recordings to a report.

    python -m benchmarks.lab run --root DATA --out OUT [--device cuda] [--jobs 8] [--bundle MODEL]  again to go on
    python -m benchmarks.lab status OUT                         what is done, what is left, about how long
    python -m benchmarks.lab report OUT [--page docs/lab.md]    tables and pictures, also of a part of the grid
    python -m benchmarks.lab pack OUT FOLDER                    what is small: results, encoders, the language model
    python -m benchmarks.lab elsewhere FOLDER                   digits by other voices, notes by another soundfont
    python -m benchmarks.lab bundle OUT MODEL                   the best arm again, on all development data, in bfloat16

    recipes/lab ──► world, tests ──► LM, encoders ──► frames ──► rates (3 each) ──► arms x seeds ──► scores ──► report

OUT/world/                  `pal data mix`: recordings to scenes     OUT/runs/NAME       `pal train`
OUT/tests/                  what is asked of every arm               OUT/evals/NAME      `pal eval`
OUT/frames/ENCODERS/        `pal encode`: frames of frozen encoders  OUT/logs/STEP.log   all that a step said
OUT/marks/STEP.json         a step is done                           OUT/sweep, rates    runs and choices of learning rates
OUT/results/ARM-SEED.json   a run with its scores, item by item      OUT/robust/SEED.json the best arm under other conditions
                                                                     OUT/elsewhere/SEED.json  and on sound from elsewhere

A mark or result is written last and whole: a kill loses no more than the steps at work, and those go on from their checkpoints.
"""
