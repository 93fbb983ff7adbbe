"""Sound from elsewhere: digits by other voices, notes by another soundfont. Asked of the best arm and reported, without a goal.

    FOLDER/audio/voices/*.ogg     espeak-ng: single digits, and strings of them in one breath
    FOLDER/audio/notes/*.ogg      fluidsynth: the world's instruments by a soundfont that is not the world's
    FOLDER/exact.jsonl            digits and instruments    in the words of the world's own tests,
    FOLDER/words.jsonl            strings of digits         every wording as often under every answer
    FOLDER/made_by.json           programs, voices, soundfont
    FOLDER/index.json             ids and slices of each task, as in OUT/tests; written last

The same programs give the same sounds, and so the same `hash` in the index.
"""
