module example.com/team/hello/v2

go 1.25
