"""What tests are played on: real servers, scripted providers, raw connections."""
