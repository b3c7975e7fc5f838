// The whole program attnctl as a function, so that tests can run it.
#ifndef ATTND_CLIENT_ATTNCTL_ATTNCTL_H_
#define ATTND_CLIENT_ATTNCTL_ATTNCTL_H_

#include <ostream>
#include <string>
#include <vector>

namespace attnd::attnctl {

// Runs one command line and returns an ExitCode. `arguments` do not include the
// program's name. Writes results to `out`, and errors to `err`. If
// `err_is_terminal`, draws a progress bar on `err`. If `out_is_terminal`, top
// draws on `out`, reads keys from standard input and handles signals. Reads the
// environment variable ATTND_SERVER.
int RunAttnctl(const std::vector<std::string>& arguments, std::ostream& out,
               std::ostream& err, bool err_is_terminal,
               bool out_is_terminal = false);

}  // namespace attnd::attnctl

#endif  // ATTND_CLIENT_ATTNCTL_ATTNCTL_H_
