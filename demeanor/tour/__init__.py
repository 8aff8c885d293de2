"""The guided tour: chapters with a question, an experiment that the reader runs, a picture, and an exercise with a checked answer."""
