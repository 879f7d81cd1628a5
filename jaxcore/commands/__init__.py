"""Commands of the library: what `python -m jaxcore` (installed: `jaxcore`) does, one module per command.

    embed       texts of a file to vectors
    attribute   which words decided: explanations of a classifier, of a similarity, of what a decoder writes
    generate    prompts to continuations: a decoder, by any decoding strategy
    steer       preference pairs to directions; continuations under them
    text_runs   what these share: opening texts, ticks, progress; vector_file and line_file: outputs that resume
    arguments   a command line from a dataclass; decoders: the decoder a command is given
    console     starting and ending: memory settings, exit codes

A command is `main(arguments) -> exit code`. Everything it does is a function of the rooms above.
"""
