// The whole program attnctl as a function, so that tests can run it.
#ifndef ATTND_CLIENT_ATTNCTL_ATTNCTL_H_
#define ATTND_CLIENT_ATTNCTL_ATTNCTL_H_

#include <ostream>
#include <string>
#include <vector>

namespace attnd::attnctl {

// Runs one command line and returns an ExitCode. `arguments` do not include the
// program's name. Writes results to `out`, and errors to `err`. If
// `err_is_terminal`, draws a progress bar on `err`. Reads the environment
// variable ATTND_SERVER.
int RunAttnctl(const std::vector<std::string>& arguments, std::ostream& out,
               std::ostream& err, bool err_is_terminal);

}  // namespace attnd::attnctl

#endif  // ATTND_CLIENT_ATTNCTL_ATTNCTL_H_
