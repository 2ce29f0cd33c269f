"""What an operator's tools ask a worker: is it alive, is it ready, and how much has it done."""
