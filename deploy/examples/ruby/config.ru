# frozen_string_literal: true

# A small complete app to put behind Postern: it shows a page and takes webhooks
# of Stripe and GitHub. It is a Rack app behind Puma, whose settings are in
# config/puma.rb, and knows nothing of Postern but one header, without which it
# works as well.

require_relative "app"

$stdout.sync = true # a line is in the platform's log when it is printed
run App.new(stripe_secret: ENV["STRIPE_WHSEC"], github_secret: ENV["GITHUB_SECRET"])
