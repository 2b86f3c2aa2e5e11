"""Text on its way in and out: chat templates and streamed answers."""
