"""An HTTP server of one sealed model: OpenAI's completions, every answer with its proof."""
