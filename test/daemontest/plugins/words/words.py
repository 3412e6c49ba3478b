"""The plugin of a newcomer: a class with execute, nothing imported from us."""


class Words:
    def execute(self, text):
        words = text.split()
        return {"words": len(words), "longest": max(words, key=len) if words else ""}

    def execute_stream(self, text):
        for word in text.split():
            yield word
