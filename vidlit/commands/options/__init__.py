"""Options by their names: all there are, those of before, what a word or a config may say, what a resumed run takes."""
