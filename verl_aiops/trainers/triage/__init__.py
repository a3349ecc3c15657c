"""Where trainers and the triage reward meet: what runs on triage data are checked for beside those of any task."""
