"""What single layers tell of whole plans."""
