"""What the tests stand on: throwaway servers, a network that can be broken, worker processes, waiting, leak checks."""
