// The main function of attnctl.
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <iostream>
#include <string>
#include <vector>

#include "client/attnctl/attnctl.h"

int main(int argc, char** argv) {
  // A write to a pipe without a reader then fails with a message and an exit
  // code. Otherwise, it would end the process without a message.
  signal(SIGPIPE, SIG_IGN);
  // gRPC would log text from a server on stderr without escaping it. attnctl
  // prints the error of a failed call itself.
  setenv("GRPC_VERBOSITY", "NONE", /*overwrite=*/0);
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  return attnd::attnctl::RunAttnctl(arguments, std::cout, std::cerr,
                                    isatty(STDERR_FILENO) != 0,
                                    isatty(STDOUT_FILENO) != 0);
}
