// The attnctl binary.
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <iostream>
#include <string>
#include <vector>

#include "client/attnctl/attnctl.h"

int main(int argc, char** argv) {
  // Writing to a pipe that nobody reads is then an error with a message and an
  // exit code, in place of a sudden end.
  signal(SIGPIPE, SIG_IGN);
  // gRPC would write text of a server to stderr without escaping it. The error
  // that attnctl prints says what went wrong.
  setenv("GRPC_VERBOSITY", "NONE", /*overwrite=*/0);
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  return attnd::attnctl::RunAttnctl(arguments, std::cout, std::cerr,
                                    isatty(STDERR_FILENO) != 0);
}
