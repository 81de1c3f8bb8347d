"""Commands that are no methods of the Trainer, the help, and the variable for tracebacks."""

#: commands of ours that are no methods of the Trainer, and how many arguments they take
EXTRA_COMMANDS = {"list": (0, 1), "recipes": (0, 0), "copy": (1, 2)}
#: set to anything to see where a one-line error comes from
TRACEBACK = "TOKENZOO_TRACEBACK"
HELP = """\
Train and evaluate visual tokenizers, and the models built on their tokens.

  lightning fit --config RECIPE [--model.NAME=VALUE --data.NAME=VALUE --trainer.NAME=VALUE]
  lightning validate | test --config RUN/config.yaml --ckpt_path RUN/last.ckpt
  lightning predict --config RUN/config.yaml --ckpt_path RUN/last.ckpt \\
                    --trainer.callbacks+=TokenDump --trainer.callbacks.out_dir=DIR
  lightning list [PATTERN]           models: size, tokens, weights, recipe
  lightning recipes                  recipes: what they train, and what to expect
  lightning copy RECIPE [TARGET]     a recipe to edit

  lightning fit --help               options of fit, and of its trainer
  lightning fit --model.help=BEiT    settings of a model; --data.help=EmojiData those of a data module
  --version                          print the version

tokenzoo and python -m zoo are the same command. The first run: lightning fit --config recipes/dvae.yaml
"""
