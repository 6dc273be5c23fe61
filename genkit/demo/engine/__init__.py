"""What happens behind the page: visitors and their files, one worker a device, previews. Knows no Gradio."""
