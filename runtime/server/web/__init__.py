"""What all interfaces of the server share: errors, bodies of requests, answers that stop when the client goes away."""
