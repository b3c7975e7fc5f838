// The attnctl binary.
#include <unistd.h>

#include <iostream>
#include <string>
#include <vector>

#include "client/attnctl/attnctl.h"

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  return attnd::attnctl::RunAttnctl(arguments, std::cout, std::cerr,
                                    isatty(STDERR_FILENO) != 0);
}
