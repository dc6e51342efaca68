"""What runs on one machine without containers: a real Kafka broker and the supervisor of the workers."""
