"""Running text that a model wrote, where it can do no harm. Nothing here judges an answer."""
