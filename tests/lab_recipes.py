"""Small recipes in the shape of recipes/lab, over the small sets of tests/data/mixing/sets.py."""

from pathlib import Path

_RECIPES = {
    "world": """
name: world
data:
  type: mix
  num_train: 20
  num_test: 20
  sources:
    - {type: esc10, root: esc10}
    - {type: fsdd, root: fsdd, category: digit, hold_out: {speaker: [theo]}}
    - {type: table, root: gm_notes, category: instrument, file: "audio/{filename}", label: instrument, pitch: midi_pitch}
  scene: {seconds: 4, num_events: [1, 2], event_s: [0.4, 1.0], num_digits: [2, 3], gap_s: [0.1, 0.3], tail_s: [0, 4]}
  tasks:
    sound: {kind: classify, weight: 2}
    first: 1
    caption: 1
    digits: {kind: transcribe, scene: {background: {sound: white, snr_db: 5}}}
""",
    "world-dev": """
base: world.yaml
name: world-dev
data:
  sources:
    0: {split: {by: fold, train: [4], test: [1, 2, 3]}}
    1: {split: {by: index, train: [45], test: [5, 6]}, hold_out: null}
    2: {split: {by: split, train: [test], test: [train]}}
""",
    "text-world": "base: world.yaml\nname: text-world\ndata: {text_only: true, seed: 1}\n",
    "lm": """
name: lab-lm
model: {llm: {model_type: llama, hidden_size: 64, num_hidden_layers: 4, num_attention_heads: 4, tokenizer: {vocab_size: 400}}}
data: {type: manifests, train: [text-world/train.jsonl], test: [text-world/test.jsonl]}
stages: [{objective: text, train: {llm: 1.0e-3}, steps: 2000, batch_size: 32}]
""",
    "encoder-unified": """
name: lab-encoder-unified
model: {encoder: {type: conv, hidden_size: 64}}
data: {type: manifests, train: [world/train.jsonl], test: [world/test.jsonl]}
stages: [{objective: tags, task: sound, train: {encoder: 1.0e-3}, steps: 2000, batch_size: 32, warmup_steps: 100}]
""",
    "arm": """
name: lab-arm
precision: bfloat16
frame_cache: frames
model:
  llm: runs/lab-lm/llm
  encoder: {type: conv, checkpoint: runs/lab-encoder-unified/encoders/audio, frozen: true}
data: {type: manifests, train: [world/train.jsonl], test: [world/test.jsonl]}
stages:
  - {name: answers, train: {connector: 1.0e-3, projector: 1.0e-3, llm: 1e-4}, steps: 3000, batch_size: 96, warmup_steps: 100}
""",
    "arms/plits": "base: ../arm.yaml\nmodel: {preset: plits}\nstages: {0: {train: {projector: null}}}\n",
    "arms/lal": "base: ../arm.yaml\nmodel: {preset: lal}\n",
}


def make_recipes(folder: Path) -> Path:
    for name, text in _RECIPES.items():
        path = folder / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder
